"""Small networks to put in the place of real ones, in tests whose time goes with a network's size."""

RESNET20 = (16, 32), (1, 1)
"""For CIFAR_STAGES: two stages of two binary convolutions each."""
RESNET18 = (16, 32, 64, 128), (1, 1, 1, 1)
"""For IMAGENET_STAGES: four stages of two binary convolutions each, narrower than its own."""
