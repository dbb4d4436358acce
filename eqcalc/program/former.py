"""Names that parts of a NequIP had before its modules were those of its program.

Files, and run folders, from before that have them for ever.
"""

import re

#: of parts of layer k, and of the operation (with what is in it) that has their place
FORMER = {
    "linear_up.linear": "up_{k}",
    "up_bias": "up_bias_{k}",
    "radial_network": "r_{k}",
    "convolution": "sum_{k}",
    "message_norm": "m_{k}.norm",
    "self_connection": "own_{k}",
    "linear_mix.linear": "mix_{k}",
    "product.linear_in.linear": "factors_{k}",
    "product.channel_product": "products_{k}",
    "product.linear_out.linear": "more_{k}",
    "gate_bias": "gate_bias_{k}",
    "gate": "x_{next}",
    "readout_in": "energies.inner",
    "readout_out": "energies.outer",
}

_PLACE = re.compile(rf"(.*layers\.)(\d+)\.({'|'.join(map(re.escape, FORMER))})(\..+|)")


def present_name(name: str) -> str:
    """Of a parameter or buffer that may have a former name."""
    found = _PLACE.fullmatch(name)
    if not found:
        return name
    before, number, part, rest = found.groups()
    k = int(number)
    return f"{before}{k}.{FORMER[part].format(k=k, next=k + 1)}{rest}"


def former_name(name: str) -> str:
    """Of a parameter or buffer that may have had one: what `present_name` takes back."""
    found = re.fullmatch(r"(.*layers\.)(\d+)\.(.+)", name)
    if not found:
        return name
    before, number, rest = found.groups()
    k = int(number)
    for part, present in FORMER.items():
        now = present.format(k=k, next=k + 1)
        if rest == now or rest.startswith(f"{now}."):
            return f"{before}{k}.{part}{rest.removeprefix(now)}"
    return name
