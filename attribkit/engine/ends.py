"""What ends a forward pass early."""


class StopForward(BaseException):
    """Ends the forward pass at the layer asked for; not an Exception, so that no model's handler swallows it."""


class GraphWanted(BaseException):
    """The model differentiates on its way up; not an Exception, so that no model's handler swallows it."""
