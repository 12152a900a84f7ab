"""The Pulumi program `deployctl`: `pulumi up` from the repository root runs `stacks/__main__.py`."""
