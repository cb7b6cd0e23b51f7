"""HTTP: a starlette application that answers clients of several protocols from models of this machine."""
