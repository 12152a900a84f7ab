"""How an endpoint behaves under load: loads, prompts, measured answers, and what a person concludes from them."""
