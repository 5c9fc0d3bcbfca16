package domain

// aliases are the further names of p.
func (p publicEvent) aliases() (names []string) {
	for _, a := range publicTypes[p.name].Aliases {
		if a.when == nil || a.when(p.data) {
			names = append(names, a.Name)
		}
	}
	return names
}

// Told is the name under which somebody who asked for patterns is told of e:
// that of the first pattern that selects the event or one of its aliases; or
// "". Who asks by an alias is told by the alias: his system knows no other
// name. An event that several patterns select is told once.
func (e PublicEvent) Told(patterns []string) string {
	for _, p := range patterns {
		if Selects(p, e.Type) {
			return e.Type
		}
		for _, name := range e.Aliases {
			if Selects(p, name) {
				return name
			}
		}
	}
	return ""
}
