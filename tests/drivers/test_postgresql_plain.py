"""Which statements are plain, going by their texts: some are, and whatever else there is, is not."""

from __future__ import annotations

import re

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.drivers._postgresql import plain
from poolkit.drivers._postgresql.plain import is_plain, names_in
from poolkit.drivers._postgresql.plain_names import (
    BEFORE_STRING,
    CALLED_BY_DOT,
    FUNCTIONS,
    NAMES,
    RESERVED,
    TYPES,
)


@pytest.fixture
def anyio_backend() -> str:
    """Run on one loop: nothing here depends on it."""
    return "asyncio"


NONE: frozenset[str] = frozenset()

PLAIN = """
select 1
SELECT * FROM t WHERE id = $1;
SELECT t.* FROM s.t AS t WHERE t.a = 'it''s' AND "t"."B" IS NOT NULL -- a comment
/* one /* inside 'of */ another */ SELECT 1 ; ;
insert into t(a, b) values ($1, now()) returning id
INSERT INTO s.t (a) SELECT lower(x) FROM y ON CONFLICT (a) DO UPDATE SET b = excluded.b, c = 'x'
INSERT INTO t DEFAULT VALUES
INSERT INTO "T" AS x (a) VALUES (DEFAULT), (2)
UPDATE t SET (a, b) = (1, 2) WHERE EXISTS (SELECT 1 FROM u WHERE u.id = t.id)
UPDATE t SET a = CASE WHEN a > 0 THEN 'plus' ELSE lower('MINUS') END
DELETE FROM t USING u WHERE u.id IN (1, 2, 3) RETURNING t.*
WITH x AS (INSERT INTO t (a) VALUES (1) RETURNING *) SELECT x.a FROM x
WITH RECURSIVE a(b) AS (SELECT 1 UNION ALL SELECT b + 1 FROM a), c AS NOT MATERIALIZED (SELECT 2) SELECT * FROM a
with a(b) as (select 1), c as materialized (select 2) insert into t select * from a
(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1 DESC LIMIT 10 OFFSET $2
VALUES (1, 'a'), (2, 'b')
SELECT DISTINCT ON (a) b, c FROM t ORDER BY a, b DESC NULLS LAST FOR UPDATE SKIP LOCKED
SELECT count(*) FILTER (WHERE x > 1) OVER (PARTITION BY y ORDER BY z) FROM t
SELECT row_number() OVER w FROM t WINDOW w AS (PARTITION BY a ORDER BY b)
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t GROUP BY GROUPING SETS ((a), (b), ())
SELECT x::int, y::numeric(10,2), CAST(z AS numeric(3, 1)), cast(q AS text[]), r::pg_catalog.int4 FROM t
SELECT * FROM json_to_recordset($1) AS x(a int, b text, c numeric(3, 1))
SELECT * FROM json_to_record($1) AS (a int, b timestamp with time zone)
SELECT * FROM unnest($1::int[], $2::text[]) AS t(a, b) JOIN u USING (a)
SELECT interval '1 day' + now() AT TIME ZONE 'UTC', date '2020-01-01', E'a' || 'b''c'
SELECT a -> 'b' ->> 'c' FROM t WHERE d @> '{"a": 1}' AND e ? 'f' AND g ~* '^h' AND i LIKE 'j%' ESCAPE '!'
SELECT extract(epoch FROM now()), substring(a FROM 1 FOR 2), trim(BOTH ' ' FROM x), position('a' IN b) FROM t
SELECT pg_catalog.lower(x), coalesce(a, 'b'), nullif(c, ''), ARRAY[1, 2], ARRAY(SELECT 1), ROW(1, 2) FROM t
SELECT a[1:2], b[1], -1.5e-3, $1 = ANY($2), (1, 2) OVERLAPS (3, 4) FROM t
SELECT current_date, current_user, current_timestamp(3), gen_random_uuid()
SELECT a FROM t, LATERAL (SELECT 1) AS x WHERE a BETWEEN (1) AND (2) AND NOT (b) OR (c)
BEGIN
begin work;
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
START TRANSACTION READ WRITE, NOT DEFERRABLE
COMMIT;
END
ROLLBACK AND NO CHAIN
SAVEPOINT __asyncpg_savepoint_1__;
RELEASE SAVEPOINT "A";
ROLLBACK TO __asyncpg_savepoint_1__;
"""


@pytest.mark.parametrize("sql", PLAIN.strip().splitlines())
def test_statement_is_plain(sql: str) -> None:
    """It calls only what is PostgreSQL's own, and leaves nothing."""
    assert is_plain(sql, NONE)


#: Each leaves something, may leave something, is not one statement, or is not understood.
NOT_PLAIN = [
    # Other statements.
    "",
    ";",
    "-- nothing",
    *("SET x = 1", "SET LOCAL x = 1", "RESET ALL", "SHOW x", "DISCARD ALL", "TABLE t", "LISTEN x"),
    *("NOTIFY x", "UNLISTEN *", "LOCK TABLE t", "CALL f()", "DO 'x'", "EXECUTE p", "PREPARE p AS"),
    *("DEALLOCATE ALL", "DECLARE c CURSOR FOR SELECT 1", "FETCH c", "MOVE c", "CLOSE c", "VACUUM"),
    *(
        "COPY t TO STDOUT",
        "CREATE TABLE t ()",
        "CREATE TEMP TABLE t ()",
        "DROP TABLE t",
        "LOAD 'x'",
    ),
    *("TRUNCATE t", "ANALYZE", "EXPLAIN SELECT 1", "EXPLAIN ANALYZE SELECT f()", "ALTER TABLE t"),
    *("PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'", "ROLLBACK PREPARED 'x'", "CHECKPOINT"),
    *("SET TRANSACTION READ ONLY", "SET CONSTRAINTS ALL DEFERRED", "IMPORT FOREIGN SCHEMA x"),
    "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE",
    '"select" 1',
    # Several.
    "SELECT 1; SET x = 1",
    "SELECT 1; SELECT 2",
    "BEGIN; SELECT 1",
    ";SELECT 1",
    "SELECT 1 /* ; */; SET x = 1",
    "COMMIT; SET x = 1",
    "BEGIN ISOLATION LEVEL SERIALIZABLE SET x",
    "SAVEPOINT a b",
    "ROLLBACK TO SAVEPOINT a; SET x = 1",
    # Functions.
    "SELECT set_config('x', 'y', false)",
    "SELECT SET_CONFIG ('x', 'y', false)",
    "SELECT pg_catalog.set_config('x', 'y', false)",
    "SELECT \"set_config\"('x', 'y', false)",
    "SELECT pg_catalog . \"set_config\" ('x', 'y', false)",
    "SELECT U&\"set\\005fconfig\"('x', 'y', false)",
    "SELECT U&\"set!005fconfig\" UESCAPE '!' ('x', 'y', false)",
    "SELECT set_config/* */('x', 'y', false)",
    "SELECT set_config--\n('x', 'y', false)",
    "SELECT 1 --\r, set_config('x', 'y', false)",
    "SELECT 1 -- /*\n, set_config('x', 'y', false) -- */",
    "SELECT 1 /* /* */ */, set_config('x', 'y', false) /* */",
    "SELECT '/*', set_config('x', 'y', false), '*/'",
    "SELECT 'a''', set_config('x', 'y', false), ''''",
    "SELECT \"'\", set_config('x', 'y', false), \"'\"",
    "SELECT 'a\\'', set_config('x', 'y', false), '",
    "SELECT E'a\\'', set_config('x', 'y', false) --'",
    "SELECT $$'$$, set_config('x', 'y', false), $$'$$",
    "SELECT $a$'$a$, set_config('x', 'y', false), $a$'$a$",
    "SELECT 1$1$, 2",
    "SELECT a$b$(1)",
    "SELECT nextval('s')",
    "WITH x AS (SELECT nextval('s')) SELECT * FROM x",
    "SELECT ('s'::regclass).nextval",
    "SELECT (0.5::float8).setseed",
    "SELECT ($1).setseed",
    "SELECT $1.setseed",
    "SELECT (ARRAY[0.5])[1].setseed",
    "SELECT setseed(0.5)",
    "SELECT s.nextval FROM unnest(ARRAY['s'::regclass]) AS s",
    "SELECT s.\"nextval\" FROM unnest(ARRAY['s'::regclass]) AS s(x)",
    "SELECT x.setseed FROM generate_series(0, 1) AS x",
    "SELECT x.ts_stat FROM unnest(ARRAY['SELECT f()']) AS x",
    *("SELECT setval('s', 1)", "SELECT currval('s')", "SELECT lastval()", "SELECT lo_creat(1)"),
    *(
        "SELECT lo_import('x')",
        "SELECT lo_open(1, 2)",
        "SELECT loread(1, 2)",
        "SELECT lowrite(1, 'x')",
    ),
    *("SELECT pg_advisory_lock(1)", "SELECT pg_sleep(1)", "SELECT pg_notify('a', 'b')"),
    *(
        "SELECT pg_try_advisory_lock(1)",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_reload_conf()",
    ),
    *("SELECT dblink('', '')", "SELECT dblink_connect('')", "SELECT crosstab('x')"),
    *(
        "SELECT query_to_xml('SELECT f()', true, true, '')",
        "SELECT table_to_xml('t', true, true, '')",
    ),
    *("SELECT cursor_to_xml('c', 1, true, true, '')", "SELECT database_to_xml(true, true, '')"),
    *(
        "SELECT ts_stat('SELECT f()')",
        "SELECT ts_rewrite('a', 'SELECT f()')",
        "SELECT xpath('x', y)",
    ),
    *("SELECT f()", "SELECT public.lower('x')", "SELECT pg_temp.lower('x')", "SELECT a.b.lower(1)"),
    *('SELECT "Lower"(1)', 'SELECT "and"(1)', 'SELECT "over"(1)', "SELECT my_aggregate(x) FROM t"),
    *(
        "SELECT treat(x AS y)",
        "SELECT operator(1)",
        "SELECT 1 OPERATOR(public.+) 2",
        "SELECT xmltable(x)",
    ),
    "SELECT pg_catalog.pg_catalog.lower('x')",
    "SELECT pg_catalog.numeric(1)",
    "SELECT DISTINCT ON (a) set_config('x', 'y', false)",
    "SELECT count(*) FILTER (WHERE f(x))",
    "SELECT 1 WHERE EXISTS (SELECT f())",
    "SELECT * FROM f() AS t(a)",
    "SELECT * FROM ROWS FROM (f())",
    "SELECT * FROM t TABLESAMPLE mine(1)",
    "SELECT 1 LIMIT f()",
    "INSERT INTO t (a) VALUES (f())",
    "INSERT INTO t (a) SELECT f()",
    "INSERT INTO t VALUES (1) ON CONFLICT (f(a)) DO NOTHING",
    "UPDATE t SET a[f()] = 1",
    "DELETE FROM t RETURNING f()",
    # INTO.
    "SELECT * INTO x FROM t",
    "SELECT 1 INTO TEMP x",
    "SELECT 1 insert INTO TEMP x",
    "SELECT (1) insert INTO TEMP x",
    "SELECT (1) AS insert INTO TEMP x",
    'SELECT 1 "insert" INTO TEMP x',
    "WITH a AS (SELECT 1) SELECT (1) insert INTO TEMP x",
    "WITH insert AS (SELECT 1) SELECT (1) insert INTO TEMP x FROM insert",
    "WITH a AS (SELECT 1) SELECT 1 INTO TEMP x",
    "(SELECT 1) insert INTO x",
    # Types: a cast may call what the owner of the type has written.
    *("SELECT $1::mine", "SELECT $1::public.text", "SELECT $1::text.mine", 'SELECT $1::"mine"'),
    *("SELECT CAST($1 AS mine)", "SELECT CAST($1 AS public.text)", "SELECT CAST($1 AS text.mine)"),
    *("SELECT mine '1'", "SELECT \"mine\" '1'", "SELECT public.date '1'", "SELECT lower(1) '1'"),
    *("SELECT mine(3) '1'", "SELECT $1::mine[]", "SELECT CAST(1 AS mine(3))", "SELECT $1::mine(3)"),
    "SELECT * FROM json_to_record($1) AS x(a mine)",
    "SELECT * FROM json_to_record($1) AS (a mine)",
    "SELECT * FROM json_to_record($1) AS (a text, values mine)",
    "SELECT * FROM json_to_record($1) AS (insert mine)",
    "SELECT * FROM json_to_record($1) AS (a text.mine)",
    'SELECT * FROM json_to_record($1) AS "x"(a "mine")',
    "SELECT * FROM json_to_record($1) x(a mine)",
    "SELECT * FROM ROWS FROM (json_to_record($1) AS (a mine))",
    # Names.
    *(
        "UPDATE pg_settings SET setting = 'x'",
        "SELECT * FROM pg_stat_activity",
        "SELECT pg_x FROM t",
    ),
    *(
        "UPDATE \"pg_settings\" SET setting = 'x'",
        "INSERT INTO pg_temp.t VALUES (1)",
        "SELECT 1 pg_a",
    ),
    'SELECT "a""b"(1)',
    # Not understood, or not always the same.
    *("SELECT 'a", 'SELECT "a', "SELECT /* 1", "SELECT (1", "SELECT 1)", "SELECT 1) + (1"),
    *("SELECT 1a", "SELECT 0x1F", "SELECT 1_000", "SELECT 'é'", "SELECT 1 -- é", "SELECT 1\u00a0"),
    *("SELECT '\\d'", "SELECT 1\v", "SELECT '\0'", "SELECT {1}", "SELECT u&'x'", "SELECT 1 a'x'"),
    *("SELECT " + "1 + " * 1_000 + "1", "SELECT '" + "x" * 4_000 + "'"),
]


@pytest.mark.parametrize("sql", NOT_PLAIN, ids=lambda sql: sql[:60])
def test_statement_is_not_plain(sql: str) -> None:
    """However it is written."""
    assert not is_plain(sql, NONE)


class Text(str):
    """A text that may be another one to whoever sends it."""

    __slots__ = ()


@pytest.mark.parametrize("given", [None, 1, b"SELECT 1", Text("SELECT 1")])
def test_what_is_no_text_is_not_plain(given: object) -> None:
    """Whoever sends it may make a text of it."""
    assert not is_plain(given, NONE)


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("SELECT lower(x) FROM t", "lower"),
        ("SELECT LOWER (x) FROM t", "lower"),
        ('SELECT "lower"(x) FROM t', "lower"),
        ("SELECT sum(x) OVER (ORDER BY y) FROM t", "over"),
        ("SELECT x::text FROM t", "text"),
        ("SELECT CAST(x AS text) FROM t", "text"),
        ("SELECT date '2020-01-01'", "date"),
        ("SELECT t.total FROM t", "total"),
        ('SELECT t."Total" FROM t', "Total"),
        ("SELECT * FROM json_to_record($1) AS x(a int)", "int"),
    ],
)
def test_statement_is_not_plain_if_users_have_a_function_or_type_of_a_name_in_it(
    sql: str, name: str
) -> None:
    """Theirs may be called: by the search path, or since its arguments fit better."""
    assert is_plain(sql, NONE)
    assert is_plain(sql, frozenset(["another"]))
    assert not is_plain(sql, frozenset(["another", name]))


# -- whatever there is ---------------------------------------------------------------------------

PIECES = sorted(
    {
        piece
        for sql in [*PLAIN.splitlines(), *NOT_PLAIN]
        if len(sql) < 500
        for piece in sql.split(" ")
    }
    | {
        "'",
        '"',
        "(",
        ")",
        ",",
        ".",
        ";",
        "::",
        "--",
        "/*",
        "*/",
        "\n",
        "\r",
        "$$",
        "$1",
        "AS",
        "WITH",
    }
)
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
)


@given(texts)
def test_any_text_is_read(sql: str) -> None:
    """Nothing is raised, and the answer is always the same."""
    assert names_in.__wrapped__(sql) == names_in(sql)


#: What in a text that is plain no string, name or comment may hide.
TELLING = re.compile(r"set_config|nextval|setseed|pg_advisory|\bf\(|\bmine\b")
HIDING = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|--[^\n\r]*|/\*.*?\*/""", re.DOTALL)


@given(texts)
def test_plain_text_calls_nothing_that_is_unknown(sql: str) -> None:
    """By another, ruder reading: without all strings, quoted names and comments, it is not there."""
    if names_in(sql) is not None and not re.search(r"/\*.*/\*", sql, re.DOTALL):
        visible = HIDING.sub(" ", sql)
        assert not TELLING.search(visible) or not re.search(
            r"\b(set_config|nextval|f)\s*\(", visible
        )
        assert ";" not in visible.rstrip(" \t\n\r\f;")
        assert not re.search(r"(?<!insert)\s+into\b", visible, re.IGNORECASE)


@given(st.sampled_from(PLAIN.strip().splitlines()), st.data())
def test_plain_text_with_a_call_put_in_is_not_plain(sql: str, data: st.DataObject) -> None:
    """At whatever place outside of strings, names and comments: it is unknown, or an error."""
    hidden = [match.span() for match in HIDING.finditer(sql)]
    if "/*" in sql:  # nested
        hidden.append((0, sql.rindex("*/") + 2))
    places = [at for at in range(len(sql) + 1) if not any(a < at < b for a, b in hidden)]
    if "--" in sql:
        places = [at for at in places if at <= sql.index("--")]
    # There it is a table with columns, whatever their names, or an error.
    places = [at for at in places if not re.search(r"(?i)(as|into|with|recursive)\s*$", sql[:at])]
    at = data.draw(st.sampled_from(places))
    assert not is_plain(f"{sql[:at]} f(1) {sql[at:]}", NONE)
    assert not is_plain(f"{sql[:at]} set_config('a', 'b', false) {sql[at:]}", NONE)


def test_no_more_texts_are_remembered_than_may_be() -> None:
    """Nor any that are long."""
    names_in.cache_clear()
    for n in range(plain.MOST + 10):
        assert is_plain(f"SELECT {n}", NONE)
    assert not is_plain("SELECT " + "1" * plain.LONGEST, NONE)
    assert names_in.cache_info().currsize == plain.MOST


# -- the names -----------------------------------------------------------------------------------

#: Volatile, and harmless: they look at the clock, or are random.
HARMLESS = {"clock_timestamp", "gen_random_uuid", "random", "timeofday", "uuidv4", "uuidv7"}
#: Of later versions than the oldest one that is tested.
NEWER = {
    *("any_value", "casefold", "crc32", "date_add", "date_bin", "date_subtract", "erf", "erfc"),
    *("gamma", "json_agg_strict", "jsonb_agg_strict", "lgamma", "regexp_count", "regexp_instr"),
    *("regexp_like", "regexp_substr", "string_to_table", "trim_array", "uuid_extract_timestamp"),
    *(
        "uuid_extract_version",
        "uuidv4",
        "uuidv7",
        "bit_count",
        "bit_xor",
        "range_agg",
        "multirange",
    ),
    *("range_intersect_agg", "unistr"),
}
#: By grammar: they call functions of other names.
GRAMMAR = {"current_catalog", "every"}


async def test_functions_are_the_servers_own_and_change_nothing(
    outside: asyncpg.Connection,
) -> None:
    """Asked of the server: each function of each name is stable, or known to be harmless."""
    rows = await outside.fetch(
        "SELECT proname, bool_or(provolatile = 'v') AS is_volatile FROM pg_proc "
        "WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY proname"
    )
    found = {row["proname"]: row["is_volatile"] for row in rows}
    assert FUNCTIONS - found.keys() <= NEWER | GRAMMAR
    assert {name for name in FUNCTIONS & found.keys() if found[name]} <= HARMLESS
    assert not [name for name in NAMES if name.startswith(("pg_", "lo_", "dblink"))]


async def test_functions_that_a_dot_may_call_change_nothing(outside: asyncpg.Connection) -> None:
    """Asked of the server: those that take one value, and are volatile, are known."""
    rows = await outside.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace "
        "AND provolatile = 'v' AND 1 BETWEEN pronargs - pronargdefaults AND pronargs "
        "AND 'internal'::regtype NOT IN (proargtypes[0], prorettype)"
    )
    found = {row["proname"] for row in rows} - FUNCTIONS - CALLED_BY_DOT
    assert not [name for name in found if not name.startswith(("pg_", "binary_upgrade_"))]


async def test_words_that_no_function_can_have_are_reserved(outside: asyncpg.Connection) -> None:
    """Asked of the server, which knows its grammar."""
    rows = await outside.fetch("SELECT word, catcode::text FROM pg_get_keywords()")
    kinds = {row["word"]: row["catcode"] for row in rows}
    wrong = {word: kinds.get(word) for word in RESERVED if kinds.get(word) not in ("R", "C")}
    assert not wrong
    assert not [word for word in BEFORE_STRING if word not in NAMES and kinds[word] not in "RC"]


async def test_types_are_the_servers_own(outside: asyncpg.Connection) -> None:
    """Of those whose names have two words, the first."""
    for name in TYPES - {"national", "double"}:
        typed = await outside.fetchval("SELECT $1::text::regtype::oid < 16384", name)
        assert typed, name


async def test_plain_statements_are_statements(outside: asyncpg.Connection) -> None:
    """The server reads them all: what is plain is not nonsense."""
    for sql in PLAIN.strip().splitlines():
        try:
            await outside.prepare(sql)
        except asyncpg.PostgresSyntaxError:
            raise
        except asyncpg.PostgresError:  # its tables are not there
            pass
