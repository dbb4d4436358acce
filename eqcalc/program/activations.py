"""What activations are multiplied by, so that x ~ N(0, 1) comes out with unit mean square."""

#: in torch and in the kernels of the engines
SCALES = {
    "silu": 1.676532470331092,
    "tanh": 1.5925374197228321,
    "sigmoid": 1.8462285453386058,
}
