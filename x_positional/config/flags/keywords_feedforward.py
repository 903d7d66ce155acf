"""Keywords of x-transformers' FeedForward, given as `ff_*`."""

from x_positional.config.flags.entry import Flag, copied, details, refused, table, turned

_TWICE = "x-transformers passes it twice and crashes. Use "
_CLAMP = "Feedforward activations are not clamped. Use `ff_swish=True` with `ff_glu=True`, or `sandwich_norm=True`."

ENTRIES: tuple[Flag, ...] = table(
    "AttentionLayers",
    [
        refused("dim", None, _TWICE + "`dim`."),
        refused("dim_out", None, "A layer's output has the model's width. Use `dim`."),
        copied("mult", 4, "ff.mult", "Inner width as a multiple of `dim`."),
        copied("glu", False, "ff.glu", "Gated: up(x) * act(gate(x)). The inner width stays `dim * ff_mult`."),
        refused("glu_mult_bias", False, "The gate has no gain of its own. Use `ff_glu=True` alone."),
        turned("swish", False, "ff.activation", 'SiLU: `activation="silu"`; with `ff_glu=True` that is SwiGLU.'),
        turned("relu_squared", False, "ff.activation", 'ReLU squared: `activation="relu2"`.'),
        refused(
            "solu", False, 'Not one of the activations. Use `ff_swish`, `ff_relu_squared` or `ff={"activation": ...}`.'
        ),
        refused(
            "custom_activation",
            None,
            'A config holds names, not modules. Use `ff={"activation": ...}` with gelu, '
            "gelu_tanh, silu, relu or relu2.",
        ),
        refused("post_act_ln", False, "There is no norm inside the feedforward. Use `sandwich_norm=True`."),
        copied("dropout", 0.0, "ff.dropout", "Dropout of the inner activations."),
        refused("sublayer_dropout", 0.0, "There is no dropout after the second projection. Use `ff_dropout`."),
        turned(
            "no_bias",
            False,
            "ff.bias",
            "No biases; with `ff_glu=True` the gated projection keeps its own, as in x-transformers (`ff.gate_bias`).",
        ),
        refused("zero_init_output", False, "Initialisation has no switch. Zero the second projections after building."),
        refused("output_proj_depth", None, _TWICE + "the default initialisation."),
        refused("softclamp_value", None, _CLAMP),
        refused("glu_softclamp", False, _CLAMP),
        *details("ff_glu_softclamp", glu_gate_softclamp_value=4.0, glu_up_softclamp_value=25.0),
    ],
    prefix="ff_",
)
