"""Images as the OCI specifications have them: manifests, registries and layouts."""
