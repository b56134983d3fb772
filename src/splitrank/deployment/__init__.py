"""Write, for ``splitrank deploy init``, everything that a deployment on real machines needs.

``init`` (the folder), ``app_store`` (signs the app, and hands it to the SuperLink) · ``templates`` (what is filled in).
"""
