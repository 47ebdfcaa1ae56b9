module enrich

go 1.24
