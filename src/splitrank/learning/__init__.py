"""Everything that learns: labelled texts, an encoder cut at a layer, adapters in its upper part, and their aggregation.

``data``, ``docstrings``, ``split_files``, ``table``, ``table_files``, ``delimited`` (texts, from where they are) ·
``text_rules``, ``classes``, ``summary``, ``lengths`` (what they must be, and what was made of them) ·
``stratified``, ``partition`` (who holds them) · ``encoder``, ``families``, ``minilm`` (the pretrained model) ·
``trunk`` (its frozen part and the cache) · ``forward``, ``layer`` (its trained part) ·
``adapters``, ``aggregation``, ``updates`` · ``client`` (local training of one client, evaluation) · ``device``,
``memory``.
"""
