"""Layer types, one small set of functions each: output shapes, weight shapes, lowering. A family per file.

A new type is one `@register` in the file of its family; a new family is also a line in `table`.
"""
