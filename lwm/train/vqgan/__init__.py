"""Training of VQGANs: task, step, discriminator, perceptual loss, validation."""
