// Package client talks to a Chancery node, and owns the wire types of its API under /api/v1.
//
// A [Client] proves who it is by an identity certificate (mutual TLS) or by a token, and accepts only servers whose
// certificate chains to the pinned identity root: the system's trust store is never asked. Every mutating call carries
// an Idempotency-Key, so a call whose answer was lost is repeated safely and gets the answer of the first (for
// [Client.CreateToken], a token in place of the first); what cannot be repeated safely is not retried. A refusal comes back as a *[Problem] (RFC 9457), which says the rule, the value, what
// would pass, and often the next command.
//
// On the wire: names are RFC 4514 text, alternative names are "dns:NAME", "ip:ADDRESS", "email:ADDRESS" or "uri:URI",
// serial numbers are lower-case hexadecimal, certificates and requests are PEM (RFC 7468), times are RFC 3339 in UTC.
//
// A Client is safe for concurrent use. It starts no goroutine of its own.
package client
