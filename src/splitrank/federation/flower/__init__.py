"""Flower carries the messages; planning, training and averaging are those of a run in one process.

server_app   the ServerApp: the loop of ``federation.loop`` over clients that are Flower nodes
nodes        those clients as a round sees them
post         messages out, replies in, until a deadline
client_app   the ClientApp: a thin courier without torch between Flower and the worker
worker       what a client is: its texts, its model, kept from round to round
checks       what an update must be before it touches the model
payload      an adapter as one flat array, and back
station      starts and guards a node's SuperNode and worker
"""
