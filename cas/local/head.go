package local

func (s *Store) readHead(r *request) error {
	r.hosts = []string{r.http.Host}
	return nil
}
