"""The supervisor's end of the control socket."""
