"""Adapter methods: what is put into an encoder's trained layers and trained there, one file a method, and their table.

``adapter`` (named tensors) · ``method`` (what a method says, and what is written once over it) · ``lora``,
``rslora``, ``dora``, ``full``, ``bitfit``, ``ia3``, ``bottleneck``, ``prefix`` · ``peft_lora`` (what LoRA's family
shares), ``merged`` (frozen parts beside the trained) · ``factors`` (products B·A and their best approximations) ·
``selection`` (which numbers are trained and sent) · ``methods`` (the table).
"""
