module multimodal.dev/probe

go 1.25.0
