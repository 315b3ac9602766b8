"""Benchmarks that anyone can run: ``make bench``, or ``make bench-quick`` in under two minutes.

    python -m benchmarks                 everything, in a quarter of an hour
    python -m benchmarks D               one group, in three minutes at most; or some: A B overload
    python -m benchmarks D --page FILE   and write its tables, and only these, into a page
    python -m benchmarks --quick         fewer rounds, smaller numbers
    python -m benchmarks --list          what there is

What stands where:

    peers/        the pools that are measured, each behind an adapter of the same few lines
    rounds.py     A B C A B C ...: the median and the range of ratios formed inside a round
    virtual.py    an event loop whose clock jumps: hours of overload in seconds, and no noise
    table.py      what came out, as text, JSON and Markdown; chart.py draws it
    page.py       writes tables into a page, each with its day, and lists what was missed

In CPU time or on a virtual clock wherever that can be, for others work on the same machine. In wall
time a difference under a quarter is none.
"""
