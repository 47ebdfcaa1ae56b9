package access

// Everything reports whether p may do everything on the whole router: nothing is to be kept from it.
func (p *Principal) Everything() bool { return p != nil && p.all && p.Tenant == "" }
