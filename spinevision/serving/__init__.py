"""What other programs and browsers call: live page and window, the handler of Inference Endpoints, the page to try a model."""
