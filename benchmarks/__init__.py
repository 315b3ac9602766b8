"""Benchmarks that anyone can run: ``make bench``, or ``make bench-quick`` in under two minutes.

    python -m benchmarks                 everything, or some: python -m benchmarks A B overload
    python -m benchmarks --quick         fewer rounds, smaller numbers
    python -m benchmarks --list          what there is

What stands where:

    peers/        the pools that are measured, each behind an adapter of the same few lines
    rounds.py     A B C A B C ...: the median and the range of ratios formed inside a round
    virtual.py    an event loop whose clock jumps: hours of overload in seconds, and no noise
    table.py      what came out, as text, JSON and Markdown; chart.py draws it

In CPU time or on a virtual clock wherever that can be, for others work on the same machine. In wall
time a difference under a quarter is none.
"""
