"""C++ of operations on edges that depends on the network: sizes, and torques of each degree."""

from __future__ import annotations

from eqcalc.engine.build import header
from eqcalc.engine.message_plan import MessagePlan
from eqcalc.engine.plan import ConvolutionPlan, Plan
from eqcalc.engine.product_kernels import product_source
from eqcalc.engine.terms import number
from eqcalc.program.transpose import generators

#: columns of a matrix from which on more rows of edges pay, which are packed: less is fetched from
#: where matrices lie, at the price of larger tiles
WIDE = 256

HEADERS = ("frames.h", "packed.h", "edge_steps.h", "edge_products.h", "attention.h", "messages.h")


def _torque(degree: int) -> str:
    """Of <J x, w> each pair of rows once: J is antisymmetric."""
    lines = []
    size = 2 * degree + 1
    products: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for k, matrix in enumerate(generators(degree)):
        for a in range(size):
            for b in range(a):
                if abs(matrix[a, b]) > 1e-12:
                    products.setdefault((a, b), []).append((k, float(matrix[a, b])))
    for (a, b), terms in products.items():
        lines.append(f"{{ const V p = w[{a}] * x[{b}] - w[{b}] * x[{a}];")
        lines += [f"  t[{k}] {'-' if c < 0 else '+'}= {number(abs(c))} * p;" for k, c in terms]
        lines[-1] += " }"
    body = "\n  ".join(lines)
    unused = "" if lines else "[[maybe_unused]] "
    return (
        f"inline void torque(std::integral_constant<int, {size}>, {unused}const V *w, "
        f"{unused}const V *x, {unused}V *t)\n{{\n  {body}\n}}\n"
    )


def message_source(plan: Plan) -> str:
    """What csrc/messages.h needs, and that; or what is in its place without such messages."""
    messages: list[MessagePlan] = [layer.message for layer in plan.layers if layer.message]
    if not messages:
        return header("no_messages.h")
    different: dict[ConvolutionPlan, int] = {}
    for op in (op for message in messages for op in message.products):
        op.kernels = different.setdefault(op.convolution, len(different))
    degree, order = (plan.frames.degree, plan.frames.order) if plan.frames else (0, 0)
    # seven, so that small networks have the same code
    most = max(7, *(message.most_rows for message in messages))
    wide = max(message.most_columns for message in messages) >= WIDE
    return (
        f"namespace {{\nconstexpr int FRAME_DEGREE = {degree}, FRAME_ORDER = {order};\n"
        f"constexpr int MOST_EDGE_ROWS = {most};     // of a linear map\n"
        f"constexpr int TILE = {32 if wide else 16};     // edges, a multiple of L\n"
        f"constexpr int WIDE = {WIDE};     // columns of matrices that meet more rows at once\n"
        f"constexpr bool WIDE_MAPS = {str(wide).lower()};     // whether there are such\n"
        "// t_k += <w, J_k x>, of 2l + 1 rows\n"
        + "".join(_torque(l) for l in range(degree + 1))  # noqa: E741 - the name of the degree
        + product_source(list(different), (plan.l_max + 1) ** 2 - 1)
        + "}\n"
        + "\n".join(map(header, HEADERS))
    )
