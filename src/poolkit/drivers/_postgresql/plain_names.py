"""The names that a plain statement may use: keywords, functions and types of PostgreSQL's own.

A function is here if it changes nothing of the session, calls no SQL that it is given as text, and
is `pg_catalog`'s. (A test asks a server.) Not here are functions that the full reset undoes:
``set_config``, ``nextval``, the functions of advisory locks, and all others whose names begin with
``pg_``. A name that is not here is unknown, not bad.
"""

from __future__ import annotations

from typing import Final

_RESERVED: Final = """
    all and any array both case distinct else except fetch for from group having in intersect
    lateral leading limit not offset on only or placing returning select some symmetric then to
    trailing union using variadic when where current_time current_timestamp localtime localtimestamp
    between coalesce exists extract greatest grouping least normalize nullif position row trim
    values
"""
#: Words that may stand there as keywords, and that can be a function's or type's name as well.
_KEYWORDS: Final = """
    by conflict cube escape filter ilike join like over overlaps rollup set sets zone
"""
_FUNCTIONS: Final = """
    abs acos acosd acosh age area array_agg array_append array_cat array_dims array_fill
    array_length array_lower array_ndims array_position array_positions array_prepend array_remove
    array_replace array_to_json array_to_string array_upper ascii asin asind asinh atan atan2 atan2d
    atand atanh avg any_value

    bit_and bit_count bit_length bit_or bit_xor bool_and bool_or btrim

    cardinality casefold cbrt ceil ceiling center char_length character_length chr clock_timestamp
    concat concat_ws convert_from convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp
    crc32 cume_dist current_catalog current_database current_schema current_schemas current_setting

    date date_add date_bin date_part date_subtract date_trunc daterange decode degrees dense_rank
    div diameter

    encode enum_first enum_last enum_range erf erfc every exp

    factorial first_value floor format gamma gcd gen_random_uuid generate_series
    generate_subscripts get_bit get_byte

    has_any_column_privilege has_column_privilege has_database_privilege has_function_privilege
    has_schema_privilege has_sequence_privilege has_table_privilege has_type_privilege height host

    inet_client_addr inet_client_port inet_same_family inet_server_addr inet_server_port initcap
    int4multirange int4range int8multirange int8range isempty isfinite is_normalized

    json_agg json_agg_strict json_array_elements json_array_elements_text json_array_length
    json_build_array json_build_object json_each json_each_text json_extract_path
    json_extract_path_text json_object json_object_agg json_object_keys json_strip_nulls
    json_to_record json_to_recordset json_typeof jsonb_agg jsonb_agg_strict jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_concat
    jsonb_contained jsonb_contains jsonb_delete jsonb_delete_path jsonb_each jsonb_each_text
    jsonb_exists jsonb_exists_all jsonb_exists_any jsonb_extract_path jsonb_extract_path_text
    jsonb_insert jsonb_object jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_match
    jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_pretty jsonb_set
    jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof justify_days
    justify_hours justify_interval

    lag last_value lcm lead left length lgamma ln log log10 lower lower_inc lower_inf lpad ltrim

    make_date make_interval make_time make_timestamp make_timestamptz masklen max md5 min min_scale
    mod mode multirange

    network now nth_value ntile num_nonnulls num_nulls numnode nummultirange numrange

    octet_length overlay

    parse_ident percent_rank percentile_cont percentile_disc phraseto_tsquery pi plainto_tsquery
    pow power

    querytree quote_ident quote_literal quote_nullable

    radians radius random range_agg range_intersect_agg range_merge rank regexp_count regexp_instr
    regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr regr_avgx regr_avgy regr_count regr_intercept regr_r2
    regr_slope regr_sxx regr_sxy regr_syy repeat replace reverse right round row_number row_to_json
    rpad rtrim

    scale setweight sha224 sha256 sha384 sha512 sign sin sind sinh split_part sqrt starts_with
    statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array string_to_table
    strip strpos substr substring sum

    tan tand tanh timeofday timezone to_ascii to_char to_date to_hex to_json to_jsonb to_number
    to_regclass to_regnamespace to_regproc to_regrole to_regtype to_timestamp to_tsquery
    to_tsvector transaction_timestamp translate trim_array trim_scale trunc ts_delete ts_filter
    ts_headline ts_rank ts_rank_cd tsmultirange tsquery_phrase tsrange tstzmultirange tstzrange
    tsvector_to_array txid_current txid_current_if_assigned

    unnest upper upper_inc upper_inf uuidv4 uuidv7 uuid_extract_timestamp uuid_extract_version

    var_pop var_samp variance version

    websearch_to_tsquery width width_bucket
"""
#: Types, also by the first word of a name of two.
_TYPES: Final = """
    bigint bit bool boolean box bpchar bytea char character cidr circle date datemultirange
    daterange dec decimal double float float4 float8 inet int int2 int4 int4multirange int4range
    int8 int8multirange int8range integer interval json jsonb jsonpath line lseg macaddr macaddr8
    money name national nchar numeric nummultirange numrange oid path point polygon real regclass
    regconfig regnamespace regproc regrole regtype smallint text time timestamp timestamptz timetz
    tsmultirange tsquery tsrange tstzmultirange tstzrange tsvector uuid varbit varchar xid xid8 xml
"""
#: Other functions that take one value, and may change something. ``x.nextval`` calls one if ``x``
#: is the value of a function in FROM.
_CALLED_BY_DOT: Final = """
    amvalidate brin_summarize_new_values currval gin_clean_pending_list lo_close lo_creat lo_create
    lo_get lo_import lo_tell lo_tell64 lo_unlink nextval plpgsql_validator random_normal setseed
    ts_stat txid_status
"""
#: Words that may stand before a parenthesis or a string, and can be no function's or type's name.
RESERVED: Final = frozenset(_RESERVED.split())
FUNCTIONS: Final = frozenset(_FUNCTIONS.split())
CALLED_BY_DOT: Final = frozenset(_CALLED_BY_DOT.split())
TYPES: Final = frozenset(_TYPES.split())
#: Words that a type's name may have after the first.
TYPE_WORDS: Final = frozenset(
    ["array", "precision", "time", "varying", "with", "without", "zone"],
)
#: All names that a function or type of a user's may have, too. Then they are not plain.
NAMES: Final = FUNCTIONS | TYPES | frozenset(_KEYWORDS.split())
BEFORE_PARENTHESIS: Final = RESERVED | FUNCTIONS | frozenset(_KEYWORDS.split())
BEFORE_STRING: Final = RESERVED | TYPES | frozenset(["escape", "ilike", "like", "zone"])
