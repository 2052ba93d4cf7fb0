"""Other people's checkpoints as diffusers folders; a converter maps a state dict to a state dict."""
