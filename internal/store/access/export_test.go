package access

// Hashed exposes the strict reading of a token's text.
func Hashed(text string) ([32]byte, bool) { return hashToken(text) }

// Known says how many answers are remembered.
func (s *Store) Known() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.known)
}
