"""Everything that the compiled step is given, seen by Numba: one pointer to a table of numbers and addresses.

Named tuples of `state.py` hold some four hundred numbers for a model. Given by value, each function that passes them on
must be compiled with all of them. Here a function gets a pointer, and `work.keys` reads what it needs from the table
that `code.table_of` filled.

Reference: Numba's manual, "Low-level extension API".
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model
from numba.np.arrayobj import populate_array

I64 = ir.IntType(64)


class Table(types.Type):
    """A pointer to where the fields of a named tuple begin."""

    def __init__(self, fields) -> None:
        self.fields = fields
        # Every compiled function carries the names of its types, which would be thousands of letters.
        super().__init__(name=f"Table_{sha256(str(fields).encode()).hexdigest()[:8]}")


@register_model(Table)
class TableModel(models.PrimitiveModel):
    """In memory it is a pointer to numbers of 64 bits."""

    def __init__(self, manager, table) -> None:
        super().__init__(manager, table, I64.as_pointer())


@infer_getattr
class TableAttributes(AttributeTemplate):
    """The fields of the named tuple are its attributes; one that is a named tuple itself is a table again."""

    key = Table

    def generic_resolve(self, table, name):
        fields = table.fields
        if name not in fields.fields:
            return None
        kind = fields.types[fields.fields.index(name)]
        return Table(kind) if isinstance(kind, types.BaseNamedTuple) else kind


@lower_getattr_generic(Table)
def read_field(context, builder, table, pointer, name):
    """Write the code that reads one field."""
    index = table.fields.fields.index(name)
    kind = table.fields.types[index]
    place = sum(words(before) for before in table.fields.types[:index])
    never_changes = builder.module.add_metadata([])

    def word(number):
        loaded = builder.load(builder.gep(pointer, [I64(place + number)]))
        loaded.set_metadata("invariant.load", never_changes)  # so it may be read once, before a loop
        return loaded

    if isinstance(kind, types.BaseNamedTuple):
        return builder.gep(pointer, [I64(place)])
    if not isinstance(kind, types.Array):
        wanted = context.get_value_type(kind)
        if kind == types.boolean:
            return builder.trunc(word(0), wanted)
        return builder.bitcast(word(0), wanted) if isinstance(kind, types.Float) else word(0)
    array = context.make_array(kind)(context, builder)
    size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    lengths = [word(1 + dimension) for dimension in range(kind.ndim)]
    strides = [size]
    for length in lengths[:0:-1]:
        strides.insert(0, builder.mul(strides[0], length))
    data = builder.inttoptr(word(0), array.data.type)
    populate_array(array, data=data, shape=lengths, strides=strides, itemsize=size, meminfo=None)
    return array._getvalue()


def words(kind: Any) -> int:
    """Return how many numbers of the table a field takes: an array has its address and its lengths."""
    if isinstance(kind, types.Array):
        return 1 + kind.ndim
    fields = getattr(kind, "types", None)
    return 1 if fields is None else sum(map(words, fields))
