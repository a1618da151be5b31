/** The part of idb that the page uses. */
interface Cursor {
  key: any;
  primaryKey: any;
  continue(): Promise<Cursor | null>;
}
interface Store extends AsyncIterable<{ value: any }> {
  createIndex(name: string, keys: string[]): void;
  index(name: string): { openKeyCursor(range: null, direction: "prev"): Promise<Cursor | null> };
}
interface Database {
  createObjectStore(name: string, options: { keyPath: string }): Store;
  get(store: string, key: string): Promise<any>;
  put(store: string, value: any): Promise<unknown>;
  delete(store: string, key: string): Promise<void>;
  transaction(store: string): { store: Store };
}
export function openDB(
  name: string,
  version: number,
  callbacks: { upgrade(database: Database): void; terminated(): void },
): Promise<Database>;
