// Package server is a node: it reads node.yaml, opens the store, starts the listeners and the loops, and ends them in order.
//
// A node has three listeners, all on loopback unless the configuration says otherwise: the API over TLS, what relying
// parties fetch over plain http, and metrics and health. Identity on the API is by client certificate or token; the
// handshake asks for a certificate and takes any, so that a bad one gets an answer that says what is wrong with it.
//
// A node that cannot write (its database is read-only, or its clock is behind) goes on answering what only reads, and
// says at /readyz that it is not ready.
package server
