"""A trained network as a folder of the Hugging Face hub: weights, timm's config, a model card.

timm rebuilds the network from the folder or from the hub: config.json names a network that timm
knows (`import mobilenext` registers ours) and the arguments that this one was built with. Networks
that timm does not know go without config.json; their card says how to build them.

trained      what is known of a trained network: weights, scores, the run that made them
timm_entry   how timm builds it; config.json
card         README.md
markdown     texts and tables as Markdown
upload       the folder, and its upload
"""
