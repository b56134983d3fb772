"""What is learnt: labelled texts, an encoder cut at a layer, adapters in its upper part, and their aggregation.

``data``, ``docstrings``, ``table_files``, ``text_rules``, ``stratified``, ``partition`` (texts and who holds them) ·
``encoder``, ``families``, ``minilm`` (the pretrained model) · ``trunk`` (its frozen part and the cache) · ``forward``,
``layer`` (its trained part) · ``adapters``, ``aggregation`` · ``client`` (train one client, evaluate) · ``memory``.
"""
