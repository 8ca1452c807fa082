"""Which features of a sparse autoencoder belong together, and is that real?"""
