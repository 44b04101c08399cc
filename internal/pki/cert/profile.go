package cert

// Caller is who asks for a certificate.
type Caller struct {
	Name  string
	Roles []string

	// Entitlements are the values of the variables that a profile's patterns may use: "host.names" → the names that
	// the authority knows the caller's host by, "host.addresses" likewise.
	Entitlements map[string][]string
}
