"""Soft attention and an LSTM over all steps of a sequence, with a gradient made for speed.

Differentiated step by step, every weight's gradient is a matrix that each step adds to, and JAX
reads and writes all of it once a step. Here the backward loop only collects what arrives at the
matrix products; the gradients of their weights are one large product each, over all steps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Weights(NamedTuple):
    """What a step multiplies with, A, C, H: sizes of attention, features and hidden state.

    Attributes:
        score: (A,), from the hidden layer of the attention to a number for each position.
        from_hidden: (H, A + C + 4 H), from the hidden state to the attention's hidden layer, the
            gate of the context and the LSTM's gates.
        gate_bias: (C,), of the gate of the context.
        from_context: (C, 4 H), from the gated context to the LSTM's gates.
    """

    score: jax.Array
    from_hidden: jax.Array
    gate_bias: jax.Array
    from_context: jax.Array


class Memory(NamedTuple):
    """What is attended to.

    Attributes:
        features: (N, P, C), P positions.
        projected: (N, P, A), float32: their part of the attention's hidden layer.
    """

    features: jax.Array
    projected: jax.Array


class Carry(NamedTuple):
    """An LSTM's state: hidden and cell, float32 (N, H)."""

    hidden: jax.Array
    cell: jax.Array


class _Trace(NamedTuple):
    """What a step's gradient needs."""

    hidden: jax.Array  # before the step
    cell: jax.Array  # before the step
    attending: jax.Array  # its part of the attention's hidden layer
    alphas: jax.Array
    context: jax.Array
    gate: jax.Array
    gates: jax.Array  # of the LSTM, after their sigmoids and tanh
    squashed: jax.Array  # tanh of the new cell


def step(
    weights: Weights, memory: Memory, carry: Carry, inputs: jax.Array, precision: Any = None
) -> tuple[Carry, jax.Array]:
    """One step: attend with the hidden state, then update it.

    With a a row of the features, h and c the state, x the inputs and s the logistic function:
    alpha = softmax(score . tanh(projected + W h)); z = s(W h + b) * sum(alpha a);
    i, f, g, o = x + W h + W z; c' = s(f) c + s(i) tanh(g); h' = s(o) tanh(c').

    Args:
        weights: of the step.
        memory: what is attended to.
        carry: the state before the step.
        inputs: float32 (N, 4 H), the part of the LSTM's gates that does not depend on the state.
        precision: of matrix products.

    Returns:
        The state after the step, and alpha, float32 (N, P).
    """
    carry, trace = _step(weights, memory, carry, inputs, precision)
    return carry, trace.alphas


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def unroll(
    weights: Weights, memory: Memory, carry: Carry, inputs: jax.Array, precision: Any = None
) -> tuple[jax.Array, jax.Array]:
    """`step` for each of T inputs.

    Args:
        weights: of all steps.
        memory: what is attended to.
        carry: the state before the first step.
        inputs: (T, N, 4 H), see `step`.
        precision: of matrix products.

    Returns:
        The hidden states after the steps, (T, N, H), and their alphas, (T, N, P).
    """

    def body(carry: Carry, inputs: jax.Array):
        carry, alphas = step(weights, memory, carry, inputs, precision)
        return carry, (carry.hidden, alphas)

    return lax.scan(body, carry, inputs)[1]


def _forward(weights: Weights, memory: Memory, carry: Carry, inputs: jax.Array, precision: Any):
    def body(carry: Carry, inputs: jax.Array):
        carry, trace = _step(weights, memory, carry, inputs, precision)
        return carry, (carry.hidden, trace)

    _, (hiddens, traces) = lax.scan(body, carry, inputs)
    return (hiddens, traces.alphas), (weights, memory, traces)


def _backward(precision: Any, saved: Any, cotangents: tuple[jax.Array, jax.Array]):
    weights, memory, traces = saved
    attention, lstm = weights.score.shape[0], weights.from_context.shape[1]
    score = weights.score.astype(jnp.float32)
    to_hidden, to_context = weights.from_hidden.T, weights.from_context.T

    def body(carry, scanned):
        for_hidden, for_cell, for_score, for_layer = carry
        trace, of_hidden, of_alphas = scanned
        i, f, g, o = jnp.split(trace.gates, 4, -1)
        for_hidden += of_hidden
        for_cell += for_hidden * o * (1 - jnp.square(trace.squashed))
        for_gates = jnp.concatenate(
            [
                for_cell * g * i * (1 - i),
                for_cell * trace.cell * f * (1 - f),
                for_cell * i * (1 - jnp.square(g)),
                for_hidden * trace.squashed * o * (1 - o),
            ],
            -1,
        )
        for_gated = _product(for_gates, to_context, precision)
        for_gate = for_gated * trace.context * trace.gate * (1 - trace.gate)
        for_context = for_gated * trace.gate
        for_alphas = of_alphas + jnp.einsum(
            "nc,npc->np",
            for_context.astype(memory.features.dtype),
            memory.features,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        mean = jnp.sum(trace.alphas * for_alphas, -1, keepdims=True)
        for_scores = trace.alphas * (for_alphas - mean)
        layer = _layer(memory, trace.attending)
        of_layer, of_square = (
            jnp.einsum("np,npa->na", for_scores, power, precision=precision)
            for power in (layer, jnp.square(layer))
        )
        # The sum of for_scores * (1 - layer^2) over the positions; for_scores alone add up to 0.
        for_attending = -score * of_square
        for_products = jnp.concatenate([for_attending, for_gate, for_gates], -1)
        for_hidden = _product(for_products, to_hidden, precision)
        for_score += jnp.sum(of_layer, 0)
        for_layer += for_scores[:, :, None] * (1 - jnp.square(layer))
        carry = (for_hidden, for_cell * f, for_score, for_layer)
        return carry, (for_products, for_context)

    nothing = jnp.zeros_like(traces.hidden[0])
    start = (nothing, nothing, jnp.zeros_like(score), jnp.zeros_like(memory.projected))
    (for_hidden, for_cell, for_score, for_layer), (for_products, for_context) = lax.scan(
        body, start, (traces, *cotangents), reverse=True
    )
    across = functools.partial(jnp.einsum, precision=precision)
    for_gates = for_products[:, :, -lstm:]
    gated = traces.gate * traces.context
    for_weights = Weights(
        score=for_score,
        from_hidden=across("tnh,tnk->hk", traces.hidden, for_products),
        gate_bias=jnp.sum(for_products[:, :, attention:-lstm], (0, 1)),
        from_context=across("tnc,tnk->ck", gated, for_gates),
    )
    for_memory = Memory(
        features=across("tnp,tnc->npc", traces.alphas, for_context),
        projected=score * for_layer,
    )
    gradients = (for_weights, for_memory)
    cast = jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, (weights, memory))
    return *cast, Carry(for_hidden, for_cell), for_gates


unroll.defvjp(_forward, _backward)


def _step(
    weights: Weights, memory: Memory, carry: Carry, inputs: jax.Array, precision: Any
) -> tuple[Carry, _Trace]:
    hidden, cell = carry
    attention, channels = weights.score.shape[0], weights.gate_bias.shape[0]
    products = _product(hidden, weights.from_hidden, precision)
    attending = products[:, :attention]
    layer = _layer(memory, attending)
    alphas = jax.nn.softmax(layer @ weights.score.astype(jnp.float32), -1)
    context = jnp.einsum(
        "np,npc->nc",
        alphas.astype(memory.features.dtype),
        memory.features,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    gate = jax.nn.sigmoid(products[:, attention : attention + channels] + weights.gate_bias)
    gates = inputs + products[:, attention + channels :]
    gates += _product(gate * context, weights.from_context, precision)
    i, f, g, o = jnp.split(gates, 4, -1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new_cell = f * cell + i * g
    squashed = jnp.tanh(new_cell)
    gates = jnp.concatenate([i, f, g, o], -1)
    trace = _Trace(hidden, cell, attending, alphas, context, gate, gates, squashed)
    return Carry(o * squashed, new_cell), trace


def _layer(memory: Memory, attending: jax.Array) -> jax.Array:
    return jnp.tanh(memory.projected + attending[:, None])


def _product(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    return jnp.dot(
        x.astype(kernel.dtype), kernel, precision=precision, preferred_element_type=jnp.float32
    )
