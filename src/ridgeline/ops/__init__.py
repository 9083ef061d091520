"""The op vocabulary that decoders are written in and that chips implement."""
