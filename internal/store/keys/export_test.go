package keys

// Opened says how many keys are in memory.
func (s *Store) Opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recent.Len()
}

// SetMost changes the bound of that number.
func (s *Store) SetMost(n int) { s.most = n }

// Secret returns the private half of a node key, for a test to look for it where it must not be.
func (k *NodeKey) Secret() string { return k.identity.String() }

// Secret returns the private half of the recovery key.
func (r *Recovery) Secret() string { return r.identity.String() }
