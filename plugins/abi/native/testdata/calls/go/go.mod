module calls

go 1.24

require github.com/millrace/millrace/sdk/go v0.0.0

replace github.com/millrace/millrace/sdk/go => ../../../../../../sdk/go
