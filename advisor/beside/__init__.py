"""What looks at an emitted script from beside it: its pictures, its cost, the report of its runs.

A script trains and measures by itself. These read it as a module and call the parts that it is made
of, so that looking adds no line to what people read and change.
"""
