"""What the Mosaic GPU kernels need below Pallas's own operations."""
