"""The cost of each adapter method: operations, numbers sent and the largest rank, one file a method, and their table.

``cost`` (what a cost says, and of what) · ``lora`` (rsLoRA's, too), ``dora``, ``full``, ``bitfit``, ``ia3``,
``bottleneck``, ``prefix`` · ``packed``, ``reference`` (the two forward passes) · ``proximal`` (FedProx's pull, with any
method) · ``table``.
"""
