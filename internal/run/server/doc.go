// Package server is a node: it reads node.yaml, opens the store, starts the listeners and the loops, and ends them in order.
package server
