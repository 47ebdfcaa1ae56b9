// Makes keys and tokens of every algorithm with the npm package jose, and tokens that must not be let in, for the test
// beside it: {"jwks": ..., "good": {alg: token}, "bad": {what: token}}. The claims come as the first argument.
import { SignJWT, UnsecuredJWT, EncryptJWT, FlattenedSign, generateKeyPair, exportJWK, exportSPKI, calculateJwkThumbprint } from 'jose'

const claims = JSON.parse(process.argv[2])
const secret = new TextEncoder().encode(process.argv[3])
const algs = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA']
const keys = [], good = {}, bad = {}
const sign = (alg, kid, key, more = {}, changed = {}) =>
  new SignJWT({ ...claims, ...changed }).setProtectedHeader({ alg, kid, typ: 'JWT', ...more }).sign(key)
let rsa
for (const alg of algs) {
  const of = alg[0] === 'R' || alg[0] === 'P' ? (rsa ??= await generateKeyPair('RS256', { extractable: true })) : await generateKeyPair(alg, { extractable: true })
  const key = of === rsa ? await crypto.subtle.importKey('pkcs8', await crypto.subtle.exportKey('pkcs8', of.privateKey),
    { name: alg[0] === 'R' ? 'RSASSA-PKCS1-v1_5' : 'RSA-PSS', hash: 'SHA-' + alg.slice(2) }, true, ['sign']) : of.privateKey
  const jwk = await exportJWK(of.publicKey)
  jwk.kid = await calculateJwkThumbprint(jwk)
  if (of !== rsa || alg === 'RS256') keys.push(jwk)
  good[alg] = await sign(alg, jwk.kid, key)
  if (of !== rsa) bad[alg + ' of a stranger'] = await sign(alg, jwk.kid, (await generateKeyPair(alg)).privateKey) // RSA keys take long
  if (alg === 'ES256') {
    const { privateKey, publicKey } = await generateKeyPair(alg)
    bad['embedded jwk'] = await sign(alg, jwk.kid, privateKey, { jwk: await exportJWK(publicKey) })
    bad['b64 and crit'] = await sign(alg, jwk.kid, key, { b64: true, crit: ['b64'] })
    bad['expired'] = await sign(alg, jwk.kid, key, {}, { exp: claims.iat - 3600 })
  }
}
for (const alg of ['HS256', 'HS384', 'HS512']) good[alg] = await sign(alg, undefined, secret, {}, { iss: 'shared-' + alg })
bad['HS256 with the public key'] = await sign('HS256', keys[0].kid, new TextEncoder().encode(await exportSPKI(rsa.publicKey)))
bad['unsecured'] = new UnsecuredJWT(claims).encode()
bad['encrypted'] = await new EncryptJWT(claims).setProtectedHeader({ alg: 'dir', enc: 'A256GCM' }).encrypt(secret.slice(0, 32))
bad['flattened'] = JSON.stringify(await new FlattenedSign(new TextEncoder().encode(JSON.stringify(claims))).setProtectedHeader({ alg: 'HS256' }).sign(secret))
console.log(JSON.stringify({ jwks: { keys }, good, bad }))
