module multimodal.dev/cluster/tools

go 1.25.0
