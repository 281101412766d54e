"""Tables of whole training steps: their memory, their plans, where their time goes."""
