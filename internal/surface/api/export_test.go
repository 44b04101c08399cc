package api

// FewGuesses has what strangers may guess at once stay as it is, and next to nothing come back with time, so that a test on a slow machine
// comes to the end of it.
func (s *Server) FewGuesses() { s.strangers.Set(0.001, guesses) }
