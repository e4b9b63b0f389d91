"""What a user wrote: documents, Conda and pip sections, Docker steps."""
