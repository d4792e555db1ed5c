"""What draws responses from the policy: transformers, or vLLM, behind one protocol."""
