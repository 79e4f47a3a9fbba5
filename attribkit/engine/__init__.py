"""The mechanism: walking a model's operations and carrying a signal back through them.

`ops` says what kind of operation a function or module class is, `walk` finds the calls of one forward pass and names
them, `inverse` attaches an `InverseLayer` to one of them, `layers` holds the inverse layers the default methods use,
`state` leaves no trace. Which layer goes where is policy and lives in the methods.
"""
