"""A named tuple as one pointer, for Numba: the arguments of the compiled step.

The named tuples of `workspace.py` have about four hundred numbers and addresses for a model. If they were passed by
value, each function would be compiled with all of them as arguments. Here a function gets a pointer, and `work.keys`
loads the field from the words of `object_cache.words_of`.

Source: Numba's manual, "Low-level extension API".
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


class StructPointer(types.Type):
    """A pointer to the first field of a named tuple."""

    def __init__(self, fields) -> None:
        self.fields = fields
        # A compiled function's name contains the names of its argument types: thousands of letters without the digest.
        super().__init__(name=f"StructPointer_{sha256(str(fields).encode()).hexdigest()[:8]}")


@register_model(StructPointer)
class StructPointerModel(models.PrimitiveModel):
    """Represented as a pointer to 64-bit words."""

    def __init__(self, manager, struct) -> None:
        super().__init__(manager, struct, I64.as_pointer())


@infer_getattr
class StructAttributes(AttributeTemplate):
    """The fields of the named tuple are its attributes; a field that is a named tuple is a pointer again."""

    key = StructPointer

    def generic_resolve(self, struct, name):
        fields = struct.fields
        if name not in fields.fields:
            return None
        kind = fields.types[fields.fields.index(name)]
        return StructPointer(kind) if isinstance(kind, types.BaseNamedTuple) else kind


@lower_getattr_generic(StructPointer)
def load_field(context, builder, struct, pointer, name):
    """Generate the code that loads one field."""
    index = struct.fields.fields.index(name)
    kind = struct.fields.types[index]
    first = sum(words(before) for before in struct.fields.types[:index])
    never_changes = builder.module.add_metadata([])

    def word(number):
        loaded = builder.load(builder.gep(pointer, [I64(first + number)]))
        loaded.set_metadata("invariant.load", never_changes)  # so the load can be moved out of a loop
        return loaded

    if isinstance(kind, types.BaseNamedTuple):
        return builder.gep(pointer, [I64(first)])
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
    """Return how many words a field takes: an array is its address and its lengths."""
    if isinstance(kind, types.Array):
        return 1 + kind.ndim
    fields = getattr(kind, "types", None)
    return 1 if fields is None else sum(map(words, fields))
