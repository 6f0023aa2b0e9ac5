"""The product's images: what they are made of, built once per content, pushed once per registry."""
