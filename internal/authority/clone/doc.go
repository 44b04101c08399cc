// Package clone knows the nodes of the authority: who is invited, who joined, what each runs, how it does, and how it leaves.
//
// All nodes share one database and are equal but for their subsystems and leases. A node is invited by a one-time token and
// shows its own public keys; an administrator compares their fingerprint and approves; only then are the keys that the node is
// entitled to wrapped to it. What a node may open is decided by keys.Recipient.Entitled and nowhere else.
package clone
